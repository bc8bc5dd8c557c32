"""How is a rater asked? Task files, their rendering into prompts, and the reading of answers. Pure: no model, no network."""
