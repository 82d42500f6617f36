"""Load problems and base models from their sources into the form that stages use."""
