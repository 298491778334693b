"""What an artefact runs on: the option `deploy=`."""
