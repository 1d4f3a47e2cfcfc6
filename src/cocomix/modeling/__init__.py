"""The student: any supported Hugging Face decoder with a mixer between two of its blocks."""
