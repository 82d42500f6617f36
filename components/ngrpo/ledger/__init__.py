"""What results took: time, GPU-hours, energy and money. Quantities are recorded, prices come from the settings."""
