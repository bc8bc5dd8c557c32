"""An LLM as rater: backends that answer, what is made of their answers, and the job that keeps it."""
