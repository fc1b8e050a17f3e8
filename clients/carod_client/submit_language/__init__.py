"""HTCondor's submit language: a submit description -> job ads, and these -> what goes to a node and comes back.

    for job in Description.read("sweep.sub").jobs(new_cluster=lambda: 1):
        print(job.ad.to_text())

Source: HTCondor manual, condor_submit. What differs is in docs/reference/submit-language.md.
"""

from carod_client.submit_language.description import Description, SubmitJob
from carod_client.submit_language.errors import Place, SubmitError

__all__ = ["Description", "Place", "SubmitError", "SubmitJob"]
