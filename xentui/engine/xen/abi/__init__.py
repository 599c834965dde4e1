"""The public interface: numbers and structure layouts for both word sizes, nothing else."""
