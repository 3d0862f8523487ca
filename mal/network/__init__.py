"""The student as torch modules: backbone, head, score, deployed graph, checkpoint."""
