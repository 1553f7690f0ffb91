"""What a recipe names: columns and fields of rows, models and data sets of the Hub, a user's own code."""
