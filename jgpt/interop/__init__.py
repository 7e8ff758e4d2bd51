"""Models of other libraries, in and out: Hugging Face folders through one table of families."""
