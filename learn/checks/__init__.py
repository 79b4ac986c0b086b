"""What looks at exercises: check_<name>() calls a reader's function and raises Wrong with a sentence, or returns."""
