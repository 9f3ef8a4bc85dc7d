"""How good a model is, by the measures of the papers: one module each."""
