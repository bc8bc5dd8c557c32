"""A local web page on which people judge: blind votes on comparisons, or whether single responses are harmful."""
