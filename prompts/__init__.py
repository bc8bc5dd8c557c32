"""How is a rater asked? Task files, their rendering into prompts, the reading of answers. No model, no network."""
