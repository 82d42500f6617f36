"""Problems and base models: where they come from, and the form in which the stages get them."""
