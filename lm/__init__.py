"""The one home of torch model code: loading, rows that share a prompt, forward passes over them, sampling."""
