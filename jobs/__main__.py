from emolake.jobs.cli import run

run()
