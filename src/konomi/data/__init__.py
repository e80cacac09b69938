"""Prompts: records, where they are read from, and their way into token ids."""
