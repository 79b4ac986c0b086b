"""One clip from the inside: what the model computed at every step, on a page that needs nothing but a browser.

clip.py runs the model and keeps the numbers of every code; page.py puts them, the sound, anatomy.css and anatomy.js
into template.html.

    model = MusicGen.from_pretrained("demo")
    write_page("clip.html", dissect(model, "a fast bell melody", GenerationOptions(seconds=8)))
"""

from .clip import Anatomy, dissect
from .page import check_page, page, write_page

__all__ = ["Anatomy", "check_page", "dissect", "page", "write_page"]
