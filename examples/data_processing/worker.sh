#!/bin/sh
# A worker for the same job type with curl, jq and awk. It writes CSV.
#
#   JOBAPI_URL=http://localhost:8000 JOBAPI_TOKEN=jk_… ./worker.sh [--until-idle]
#
# DATA_FOLDER is the folder with the files (default: this one), JOBAPI_WORKSPACE the workspace (default: 1).
set -eu
cd "${DATA_FOLDER:-$(dirname "$0")}"
JOBS="$JOBAPI_URL/workspace/${JOBAPI_WORKSPACE:-1}/jobs"
LEASE=60

post() { # path body
  curl -s -X POST "$JOBS/$1" -H "Authorization: Bearer $JOBAPI_TOKEN" \
    -H "Content-Type: application/json" -d "$2"
}

report() { # the report's fields, as members of a JSON object
  post report "{\"reports\": [{\"job_id\": \"$ID\", \"lease_token\": \"$TOKEN\", $1}]}" |
    jq -r '.data[0] | if .accepted then "accepted" else .problem.detail end'
}

process() {
  case "$INPUT" in */*) return 1 ;; esac
  [ -f "$INPUT" ] || return 1
  OUTPUT="${INPUT%.csv}.regions.csv"
  awk -F, '
    NR == 1 { next }
    seen[$0]++ { next }
    { for (i = 1; i <= NF; i++) if ($i == "") next }
    { amount[$2] += $3 * $4; rows++ }
    END { for (region in amount) printf "%s,%.2f\n", region, amount[region] }
  ' "$INPUT" | sort > "$OUTPUT.$ID"
  mv "$OUTPUT.$ID" "$OUTPUT"
}

while :; do
  CLAIMED=$(post claim "{\"job_types\": [\"data_processing\"], \"lease_seconds\": $LEASE, \"worker\": \"shell\", \"wait_seconds\": 5}")
  ID=$(echo "$CLAIMED" | jq -r '.data[0].job_id')
  if [ "$ID" = null ]; then
    [ "${1:-}" = --until-idle ] && exit 0
    sleep 1
    continue
  fi
  TOKEN=$(echo "$CLAIMED" | jq -r '.data[0].lease_token')
  INPUT=$(echo "$CLAIMED" | jq -r '.data[0].metadata.input_file')
  echo "Claimed $ID"
  # Heartbeats in the background. A response other than "accepted" means that the lease is lost.
  ( while sleep $((LEASE / 3)); do report '"status": "running"' > /dev/null; done ) &
  HEART=$!
  report '"progress_percent": 10, "progress_message": "Reading"'
  if process; then
    kill $HEART
    report "\"status\": \"success\", \"result\": {\"output_file\": \"$OUTPUT\"}"
  else
    kill $HEART
    report '"status": "failed", "error": "There is no such input_file.", "retryable": false'
  fi
done
