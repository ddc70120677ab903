# docker build -t plusminus --build-arg VERSION="$(git describe --tags --always)" .
#
# Builds with BuildKit and with the builder that was there before it, hence no RUN --mount and no
# here-documents.

# Where no registry can be reached, .ci/base-image makes a stand-in for the build image.
ARG BUILD_IMAGE=golang:1.26-bookworm
# One static binary needs nothing around it, and what is not in the image needs no updates.
ARG RUN_IMAGE=scratch

# The build runs on this machine's own processor also when the image is for another one; the older
# builder does not set BUILDPLATFORM, and takes "linux" to mean its own.
FROM --platform=${BUILDPLATFORM:-linux} ${BUILD_IMAGE} AS build
# Empty (the older builder) is what Go takes for its own architecture.
ARG TARGETARCH
ENV CGO_ENABLED=0 GOOS=linux GOARCH=${TARGETARCH} GOTOOLCHAIN=local
WORKDIR /src
COPY . .
ARG VERSION=dev
# There is no `go mod download` before, since it would fetch what only tests need, too: a whole ACME
# server and a browser driver. go build fetches the dozen modules that the program imports.
# The folder is for the last stage: a named volume that is mounted for the first time takes its owner
# and mode from the image, and private keys are in it.
RUN go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/plusminus . \
    && mkdir /out/owned && mkdir -m 0700 /out/owned/data

FROM ${RUN_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="plusminus" \
      org.opencontainers.image.description="A WebSocket counter server that gets and renews its own certificates" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
# The roots that Let's Encrypt's API, and a rediss:// store, are checked against.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/plusminus /plusminus
# The folder's parent is copied because --chown and the mode apply to what is inside.
COPY --from=build --chown=65532:65532 /out/owned/ /

# A number: there is no /etc/passwd, and Kubernetes' runAsNonRoot takes no name.
# Docker lets any user listen on ports below 1024 since 20.10; elsewhere it takes
# --sysctl net.ipv4.ip_unprivileged_port_start=0.
USER 65532:65532
ENV PLUSMINUS_DATA=/data
VOLUME /data
EXPOSE 80 443
# /readyz says 503 until the first certificate is there, which takes seconds when all is well; the
# start period is for a CA that is slow. Only /data is written to, so --read-only needs no tmpfs.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 CMD ["/plusminus", "healthcheck"]
ENTRYPOINT ["/plusminus"]
