"""Cost of results: time, GPU-hours, energy and money. Quantities are recorded; prices come from the settings."""
