#!/usr/bin/env bash
# A cluster for `make test-cluster`: Kubeflow Pipelines, Kueue and Kubeflow Trainer of pinned versions, our queue and development overlay,
# and the CPU image. Every step may be repeated.
#
#   k8s/kind/install.sh                                              makes a kind cluster with a registry beside it
#   CLUSTER=none REPOSITORY=registry.example.com/me/ngrpo k8s/kind/install.sh
#                                                                    uses the cluster that KUBECONFIG names: k3d, minikube or any other
#
# REPOSITORY must be an address that this machine can push to and the cluster can pull from. Images are named by digest, so that loading
# them into a node is not enough.
set -euo pipefail

KFP_VERSION=${KFP_VERSION:-2.17.0}
KUEUE_VERSION=${KUEUE_VERSION:-0.19.2}
TRAINER_VERSION=${TRAINER_VERSION:-2.3.0} # brings JobSet 0.12.0
NODE_IMAGE=${NODE_IMAGE:-kindest/node:v1.36.1@sha256:3489c7674813ba5d8b1a9977baea8a6e553784dab7b84759d1014dbd78f7ebd5}
REGISTRY_IMAGE=${REGISTRY_IMAGE:-registry:3}

CLUSTER=${CLUSTER:-kind}
CLUSTER_NAME=${CLUSTER_NAME:-ngrpo}
REGISTRY_NAME=${REGISTRY_NAME:-ngrpo-registry}
REGISTRY_PORT=${REGISTRY_PORT:-5001}
REPOSITORY=${REPOSITORY:-}
PYTHON=${PYTHON:-.venv/bin/python}
NAMESPACE=kubeflow # that of the overlay k8s/overlays/dev
PATIENCE=15m       # for images that have to be pulled first

main() {
  cd "$(dirname "${BASH_SOURCE[0]}")/../.."
  check
  if [[ $CLUSTER == kind ]]; then
    make_registry
    make_cluster
    REPOSITORY=${REPOSITORY:-localhost:$REGISTRY_PORT/ngrpo}
  fi
  make_image
  install_trainer
  install_kueue
  install_pipelines
  make_secrets
  install_ours
  say "ready"
  cat <<WORDS
make test-cluster        # KUBECONFIG names this cluster: $(kubectl config current-context)

To work with it by hand:
kubectl -n $NAMESPACE port-forward svc/ml-pipeline 8888 & kubectl -n $NAMESPACE port-forward svc/object-store 8333 &
export KF_PIPELINES_ENDPOINT=http://127.0.0.1:8888 AWS_ENDPOINT_URL=http://127.0.0.1:8333 AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID=\$(kubectl -n $NAMESPACE get secret ngrpo-object-store -o jsonpath='{.data.access-key}' | base64 -d)
export AWS_SECRET_ACCESS_KEY=\$(kubectl -n $NAMESPACE get secret ngrpo-object-store -o jsonpath='{.data.secret-key}' | base64 -d)
.venv/bin/ngrpo submit --preset tiny --cluster k8s/overlays/dev/cluster.toml
WORDS
}

say() { printf '== %s\n' "$*" >&2; }

fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

check() {
  local tools=(docker git kubectl)
  case $CLUSTER in
    kind) tools+=(kind) ;;
    none)
      [[ -n $REPOSITORY ]] || fail "REPOSITORY is not set: name an address that you can push to and the cluster can pull from"
      kubectl version --request-timeout=10s >/dev/null 2>&1 || fail "the cluster of KUBECONFIG does not answer: start it, or set KUBECONFIG"
      ;;
    *) fail "CLUSTER=$CLUSTER: kind makes a cluster, none uses the one that KUBECONFIG names" ;;
  esac
  local tool
  for tool in "${tools[@]}"; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install it"
  done
  [[ -x $PYTHON ]] || fail "$PYTHON is missing: make .venv/installed, or set PYTHON"
}

# Kubernetes' own recipe for kind: a registry that this machine and the nodes know by one name, localhost:PORT.
make_registry() {
  say "registry $REGISTRY_NAME on port $REGISTRY_PORT"
  docker inspect "$REGISTRY_NAME" >/dev/null 2>&1 ||
    docker run --detach --restart always --publish "127.0.0.1:$REGISTRY_PORT:5000" --name "$REGISTRY_NAME" "$REGISTRY_IMAGE" >/dev/null
  docker start "$REGISTRY_NAME" >/dev/null
}

make_cluster() {
  say "kind cluster $CLUSTER_NAME"
  if ! kind get clusters | grep --quiet --line-regexp "$CLUSTER_NAME"; then
    kind create cluster --name "$CLUSTER_NAME" --image "$NODE_IMAGE" --config k8s/kind/cluster.yaml --wait 5m
  fi
  kind export kubeconfig --name "$CLUSTER_NAME"
  local node directory=/etc/containerd/certs.d/localhost:$REGISTRY_PORT
  while read -r node; do
    docker exec "$node" mkdir -p "$directory"
    docker exec --interactive "$node" cp /dev/stdin "$directory/hosts.toml" <<<"[host.\"http://$REGISTRY_NAME:5000\"]"
  done < <(kind get nodes --name "$CLUSTER_NAME")
  if [[ $(docker inspect --format '{{json .NetworkSettings.Networks.kind}}' "$REGISTRY_NAME") == null ]]; then
    docker network connect kind "$REGISTRY_NAME"
  fi
}

# Builds, pushes, and writes images/images.lock.
make_image() {
  say "image $REPOSITORY-cpu"
  "$PYTHON" -m images.build "$REPOSITORY" cpu
}

# With JobSet. No other training runtime than ours is needed.
install_trainer() {
  say "Kubeflow Trainer $TRAINER_VERSION"
  apply -k "https://github.com/kubeflow/trainer//manifests/overlays/manager?ref=v$TRAINER_VERSION&timeout=10m"
  ready kubeflow-system
}

install_kueue() {
  say "Kueue $KUEUE_VERSION"
  apply -f "https://github.com/kubernetes-sigs/kueue/releases/download/v$KUEUE_VERSION/manifests.yaml"
  kubectl -n kueue-system create configmap kueue-manager-config --from-file=controller_manager_config.yaml=k8s/kind/kueue.yaml \
    --dry-run=client --output yaml | kubectl apply --server-side --force-conflicts -f -
  # A mounted file of a ConfigMap is read when the manager starts.
  kubectl -n kueue-system rollout restart deployment/kueue-controller-manager
  ready kueue-system
}

install_pipelines() {
  say "Kubeflow Pipelines $KFP_VERSION"
  local manifests=https://github.com/kubeflow/pipelines//manifests/kustomize
  apply -k "$manifests/cluster-scoped-resources?ref=$KFP_VERSION&timeout=10m"
  kubectl wait --for condition=established --timeout=60s crd/applications.app.k8s.io crd/workflows.argoproj.io
  apply -k "$manifests/env/platform-agnostic?ref=$KFP_VERSION&timeout=10m"
  ready "$NAMESPACE"
}

# Keys that nobody has to know; those that are there stay, since the object store was started with them.
make_secrets() {
  kubectl -n "$NAMESPACE" get secret ngrpo-object-store >/dev/null 2>&1 && return
  say "secret ngrpo-object-store"
  kubectl create -f - <<SECRET
apiVersion: v1
kind: Secret
metadata:
  name: ngrpo-object-store
  namespace: $NAMESPACE
stringData:
  access-key: $(random)
  secret-key: $(random)
SECRET
}

random() { "$PYTHON" -c 'import secrets; print(secrets.token_hex(20))'; }

install_ours() {
  say "queue, object store, MLflow, runtime of training"
  local image
  image=$(sed -n 's/^cpu = "\(.*\)"$/\1/p' images/images.lock)
  apply -k k8s/cluster
  kubectl kustomize k8s/overlays/dev | sed "s|image: ngrpo-cpu\$|image: $image|" | kubectl apply -f -
  # There are no GPUs here: nodes that train together run the CPU image.
  sed "s|image: ngrpo-gpu\$|image: $image|" k8s/overlays/gpu/training-runtime.yaml | kubectl -n "$NAMESPACE" apply -f -
  kubectl -n "$NAMESPACE" rollout status --timeout="$PATIENCE" statefulset/object-store
  ready "$NAMESPACE"
}

# A webhook that is just being started refuses what comes too early.
apply() {
  local try
  for try in 1 2 3 4 5; do
    kubectl apply --server-side --force-conflicts "$@" && return
    say "try $try of 5 was refused"
    sleep 10
  done
  fail "kubectl apply $*: refused five times, for the reasons above"
}

ready() { kubectl -n "$1" wait --for condition=Available --timeout="$PATIENCE" deployment --all; }

main "$@"
