"""Labelling: sessions, the pipeline around them, the journal, and the commands built on these."""
