"""What annotates for a pool: ``protocol`` says what a pool asks of a worker, the other files are kinds of workers."""
