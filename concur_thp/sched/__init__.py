"""Who moves next: free and chaos runs."""
