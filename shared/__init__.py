"""The code that api, workers and courier share: parameters, tables, messages and the acts that change a job."""
