"""From labels and votes to numbers that a person can decide on, each with an interval. Knows nothing of models."""
