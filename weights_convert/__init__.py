"""Name tables between MusicGen's checkpoint layouts, and what applies them."""
