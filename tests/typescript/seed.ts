// The interfaces that front ends were written against: what the service answers must fit into them as it is.
import type { paths } from "./neuroweaver";

export type Answer<P extends keyof paths, M extends keyof paths[P], S extends number> = paths[P][M] extends {
  responses: Record<S, { content: { "application/json": infer T } }>;
}
  ? T
  : never;

type Department = "sales" | "service" | "parts" | "finance";
type Level = "high" | "medium" | "low";

interface PaginationMeta {
  page: number;
  limit: number;
  total: number;
  totalPages: number;
}

interface APIResponse<T> {
  data: T;
  success: boolean;
  message?: string;
  errors?: string[];
  pagination?: PaginationMeta;
}

interface ModelListItem {
  id: string;
  name: string;
  type: "automotive-sales" | "service-advisor" | "parts-specialist" | "finance-assistant";
  status: "training" | "deployed" | "archived";
  accuracy: number;
  costPerRequest: number;
  deploymentUrl?: string;
}

interface AIModel extends ModelListItem {
  version: string;
  maxConcurrency: number;
  trainingData: { datasetSize: number; lastTrainingDate: string; trainingDuration: number };
  performance: { avgResponseTime: number; successRate: number; totalRequests: number };
}

interface ModelPerformanceData {
  modelId: string;
  metrics: {
    accuracy: number;
    avgResponseTime: number;
    costPerRequest: number;
    successRate: number;
    automotiveSpecificMetrics: {
      leadConversionRate?: number;
      customerSatisfactionScore?: number;
      diagnosticAccuracy?: number;
    };
  };
  recentPerformance: { timestamp: string; metric: string; value: number }[];
}

interface ExecutionLogsResponse {
  logs: {
    workflowId: string;
    timestamp: string;
    status: "success" | "error" | "timeout";
    aiModel: string;
    responseTime: number;
    cost: number;
    errorMessage?: string;
  }[];
  aggregates: { totalExecutions: number; successRate: number; avgResponseTime: number; totalCost: number };
}

interface AIResponse {
  requestId: string;
  modelUsed: string;
  responseTime: number;
  cost: number;
  confidence: number;
  content: {
    text: string;
    structuredData?: Record<string, any>;
    suggestions?: string[];
    nextActions?: { action: string; priority: Level; automated: boolean }[];
  };
  automotive: {
    department: Department;
    customerImpact: Level;
    followUpRequired: boolean;
    crmIntegration?: { updateCustomerRecord: boolean; scheduleFollowUp?: string; updateOpportunity?: any };
  };
  metadata: { processingSteps: string[]; dataSourcesUsed: string[]; complianceFlags?: string[] };
}

interface PromptSubmissionRequest {
  agentType: Department;
  promptTemplate: string;
  variables: Record<string, any>;
  context: { dealership: string; department: string; customerId?: string; vehicleId?: string };
  routing: { preferredModel?: string; maxCost?: number; maxResponseTime?: number };
}

interface DeployModelRequest {
  environment: "staging" | "production";
  routingWeight: number;
  maxConcurrency: number;
}

type Asked<P extends keyof paths, M extends keyof paths[P]> = paths[P][M] extends {
  requestBody: { content: { "application/json": infer T } };
}
  ? T
  : never;

// Each of these compiles only where the one type may stand for the other. `never` would fit anywhere.
type Fits<Given, Wanted> = [Given] extends [never] ? false : Given extends Wanted ? true : false;

export const fitting: true[] = [
  true satisfies Fits<Answer<"/api/v1/models", "get", 200>, APIResponse<{ models: ModelListItem[] }>>,
  true satisfies Fits<Answer<"/api/v1/models/{model_id}", "get", 200>, APIResponse<AIModel>>,
  true satisfies Fits<Answer<"/api/v1/models/{model_id}/performance", "get", 200>, APIResponse<ModelPerformanceData>>,
  true satisfies Fits<Answer<"/api/v1/logs/execution", "get", 200>, APIResponse<ExecutionLogsResponse>>,
  true satisfies Fits<Answer<"/api/v1/prompts", "post", 200>, APIResponse<AIResponse>>,
  true satisfies Fits<PromptSubmissionRequest, Asked<"/api/v1/prompts", "post">>,
  true satisfies Fits<DeployModelRequest, Asked<"/api/v1/models/{model_id}/deploy", "post">>,
];
