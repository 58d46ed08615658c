{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "shoal.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "shoal.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "shoal.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of one part; the tracker's discovery selects agents by the same. */}}
{{- define "shoal.selector" -}}
app.kubernetes.io/name: {{ include "shoal.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "shoal.labels" -}}
{{ include "shoal.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{- define "shoal.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "shoal.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-tracker" (include "shoal.fullname" .)) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "shoal.priorityClass" -}}
{{- if .Values.priorityClass.name -}}
{{- .Values.priorityClass.name -}}
{{- else if .Values.priorityClass.create -}}
{{- /* Priority classes belong to no namespace: releases of one name in two namespaces must not share one. */ -}}
{{- printf "%s-%s" .Release.Namespace (include "shoal.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* Settings as the environment twins of the flags: camelCase -> SHOAL_CAMEL_CASE, lists by comma, null left out. */}}
{{- define "shoal.env" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
- name: SHOAL_{{ $key | snakecase | upper }}
  value: {{ if kindIs "slice" $value }}{{ join "," $value | quote }}{{ else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* What every container may not do. */}}
{{- define "shoal.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* What `shoal containerd install|uninstall` is told: where the node's files are, and where its agent listens. */}}
{{- define "shoal.containerdEnv" -}}
{{- $settings := deepCopy .Values.containerd.settings -}}
{{- if not $settings.mirror -}}
{{- $_ := set $settings "mirror" (printf "http://127.0.0.1:%d" (int .Values.agent.ports.mirror)) -}}
{{- end -}}
{{- include "shoal.env" $settings | trim -}}
{{- end -}}

{{/* The node's containerd configuration to read, and its certs.d to write. */}}
{{- define "shoal.containerdMounts" -}}
- name: containerd
  mountPath: {{ .hostRoot }}{{ dir .containerdConfig }}
  readOnly: true
- name: certs
  mountPath: {{ .hostRoot }}{{ .containerdCerts }}
{{- end -}}

{{- define "shoal.containerdVolumes" -}}
- name: containerd
  hostPath:
    path: {{ dir .containerdConfig }}
    type: DirectoryOrCreate
- name: certs
  hostPath:
    path: {{ .containerdCerts }}
    type: DirectoryOrCreate
{{- end -}}

{{/* "true" where agents and trackers know each other by key: trackers sign for tokens, so they must ask the API server. */}}
{{- define "shoal.keyed" -}}
{{- $kubernetes := eq (default "kubernetes" .Values.tracker.settings.discovery) "kubernetes" -}}
{{- and .Values.identity.enabled $kubernetes (not .Values.tracker.settings.tlsCa) (not .Values.agent.settings.tlsCa) -}}
{{- end -}}

{{/* The Secret (kubernetes.io/tls) that holds the authority. */}}
{{- define "shoal.authority" -}}
{{- default (printf "%s-authority" (include "shoal.fullname" .)) .Values.identity.existingSecret -}}
{{- end -}}
