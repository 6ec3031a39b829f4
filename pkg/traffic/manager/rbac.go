package manager

// These markers list what the traffic-manager may do in the whole cluster. `make generate` turns
// them into its ClusterRole. The right that `intercept --attach` needs is in the chart, which can
// leave it out.

// +kubebuilder:rbac:groups="",resources=nodes;services;pods,verbs=get;list;watch
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations,resourceNames=detour-traffic-agent,verbs=get;update
// +kubebuilder:rbac:groups=apps,resources=deployments;statefulsets;daemonsets,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=argoproj.io,resources=rollouts,verbs=get;list;watch;patch
// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=detour.dev,resources=sessions/status;intercepts/status,verbs=update
// +kubebuilder:rbac:groups=detour.dev,resources=sessions;intercepts,verbs=get;list;watch;delete
// +kubebuilder:rbac:groups=networking.k8s.io,resources=servicecidrs,verbs=get;list;watch
