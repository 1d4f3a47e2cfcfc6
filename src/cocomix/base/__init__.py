"""What every layer stands on: errors, self-describing folders, progress lines, host settings."""
