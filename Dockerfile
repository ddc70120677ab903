# docker build -t plusminus --build-arg VERSION="$(git describe --tags --always)" .
#
# This file works with BuildKit and with Docker's older builder, so it uses no RUN --mount and no here-documents.

# On a machine that cannot reach a registry, .ci/base-image makes a substitute for the build image.
ARG BUILD_IMAGE=golang:1.26-bookworm
# A static binary needs no other files, and an empty base image needs no updates.
ARG RUN_IMAGE=scratch

# The build runs on the platform of this machine, even if the image is for another platform. The older builder does
# not set BUILDPLATFORM; for it "linux" means its own platform.
FROM --platform=${BUILDPLATFORM:-linux} ${BUILD_IMAGE} AS build
# The older builder leaves TARGETARCH empty. Go then builds for its own architecture.
ARG TARGETARCH
ENV CGO_ENABLED=0 GOOS=linux GOARCH=${TARGETARCH} GOTOOLCHAIN=local
WORKDIR /src
COPY . .
ARG VERSION=dev
# No `go mod download` comes first: it would also fetch the modules that only tests need, such as an ACME server and
# a browser driver. go build fetches only the modules that the program imports, about a dozen.
# The last stage copies /out/owned. Docker gives a new named volume the owner and the mode of the image's folder, and
# /data contains private keys. /export is for -export, whose own folders are closed.
RUN go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/plusminus . \
    && mkdir /out/owned && mkdir -m 0700 /out/owned/data && mkdir -m 0755 /out/owned/export

FROM ${RUN_IMAGE}
ARG VERSION=dev
LABEL org.opencontainers.image.title="plusminus" \
      org.opencontainers.image.description="A WebSocket counter server that gets and renews its own certificates" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
# The root certificates that verify Let's Encrypt's API and a rediss:// store.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /out/plusminus /plusminus
# This copies the parent folder, because --chown applies to what is inside, and keeps the mode of data.
COPY --from=build --chown=65532:65532 /out/owned/ /

# A number, because the image has no /etc/passwd, and Kubernetes' runAsNonRoot cannot check a name.
# Since 20.10 Docker lets any user listen on ports below 1024. Other runtimes need
# --sysctl net.ipv4.ip_unprivileged_port_start=0.
USER 65532:65532
ENV PLUSMINUS_DATA=/data
VOLUME /data
EXPOSE 80 443
# /readyz answers 503 until the first certificate is obtained. That normally takes seconds; the start period allows
# for a slow CA. plusminus writes only to /data, so --read-only needs no tmpfs.
HEALTHCHECK --interval=10s --timeout=5s --start-period=2m --retries=3 CMD ["/plusminus", "healthcheck"]
ENTRYPOINT ["/plusminus"]
