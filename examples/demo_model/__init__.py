"""A small MusicGen trained from nothing: synthesised captioned music, its training, and its evaluation."""
