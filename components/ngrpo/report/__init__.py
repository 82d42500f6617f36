"""What draws or words results: the report page, the model card, lines of progress. Nothing here changes a result."""
