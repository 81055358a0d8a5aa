# The project's image with what the tests of the cluster in containers need on top. The packages are fetched in a stage
# of their own, so that a change of the project's code fetches nothing again.
ARG BASE
ARG PROJECT

FROM ${BASE} AS packages
RUN mkdir -p /packages/partial && apt-get update \
 && apt-get install -y --no-install-recommends --download-only -o Dir::Cache::archives=/packages iproute2 libfaketime

FROM ${PROJECT}
USER root
COPY --from=packages /packages /packages
RUN dpkg --install /packages/*.deb \
 && ln -s /usr/lib/*/faketime/libfaketime.so.1 /usr/local/lib/libfaketime.so.1 \
 && rm -rf /packages
COPY tests/containers/inside /opt/inside
USER 10001:10001
