"""What every layer builds on: errors, self-describing folders, progress lines, host settings."""
