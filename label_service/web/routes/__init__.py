"""The routes: thin handlers that turn HTTP into calls of the service and back."""
