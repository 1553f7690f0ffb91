"""Files of rows as tables: their rows are read when they are asked for, and do not live in memory."""
