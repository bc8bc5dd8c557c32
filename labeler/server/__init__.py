"""Direct rewards over HTTP: one scoring core, and a thin dialect for each framework that asks it."""
