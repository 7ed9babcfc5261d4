"""The contract between the processes: words, rows, messages and the acts that change a job."""
