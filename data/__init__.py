"""What a row is, how files are read and written. Nothing here knows of prompts, models or statistics."""
