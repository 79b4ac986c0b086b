"""The course: chapters that run, exercises with their checker, questions. See README.md beside this file."""
