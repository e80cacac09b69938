"""Data: records, readers of files and data sets, tokenization."""
