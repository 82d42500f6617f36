"""The stages of the pipeline, ordinary functions over files, and the code that runs them."""
