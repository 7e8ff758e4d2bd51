"""Writing text with a model: how a token is drawn, and the cached loop that draws many."""
