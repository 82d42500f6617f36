"""The service of a registered version on a cluster: its KServe manifest, and how it is applied, watched and rolled back."""
