"""`malmask`: masks for the regions of interest of a GStreamer pipeline. A way in, like the command line."""
