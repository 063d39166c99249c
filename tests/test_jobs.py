"""Jobs over HTTP: the guide's operations and the contract's fine print."""

from .factories import Desk


def test_create_minimal_job_answers_the_whole_job(desk: Desk) -> None:
    response = desk.post(json={"job_type": "data_processing", "workspace_id": desk.workspace_id})
    assert response.status_code == 201
    job = response.json
    assert job["status"] == "pending"
    assert response.headers["Location"] == f"{desk.jobs_path}/{job['job_id']}"
    assert desk.get(f"/{job['job_id']}").json == job
