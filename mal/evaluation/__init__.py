"""Looking at masks: figures against true ones, overlays, the demo."""
