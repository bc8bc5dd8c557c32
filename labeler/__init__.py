"""An LLM as rater: backends that answer, the labels, scores and rankings made of their answers, and the job that keeps them."""
