"""Models on the Hugging Face Hub, by their headers: names, byte ranges, and a cache of both."""
