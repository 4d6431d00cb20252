"""Several customers in one deployment."""
